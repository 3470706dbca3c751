"""Reconstructs raw k-space uploaded in a browser and shows the bounds, their volumes and files to download.

`limits` -> `uploads` (what a file offers) -> `runs` (a reconstruction) -> `views` and `downloads` -> `events` ->
`page` (Gradio) -> `server`.
"""
