"""What several tests need: tiny networks, scans in the SKM-TEA layout, raw files and a Hub on this machine."""
