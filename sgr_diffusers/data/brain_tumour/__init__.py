"""The public brain tumour data set of J. Cheng, brought into the SKM-TEA layout by a simulated acquisition.

Source: figshare 1512427, https://doi.org/10.6084/m9.figshare.1512427, CC BY 4.0 as stated by those who pass it on. It
holds magnitude images (T1-weighted with contrast agent) with hand-drawn tumour outlines. Phase, coils, noise and
undersampling are simulated here.
"""
