"""Who one is and how that is shown: keys, certificates, and the files that hold them."""
