"""Raw k-space uploaded in a browser enters; a page of bounds, their volumes and files to download leaves.

`limits` -> `uploads` (what a file offers) -> `runs` (a reconstruction) -> `views` and `downloads` -> `page` (Gradio)
-> `server`.
"""
