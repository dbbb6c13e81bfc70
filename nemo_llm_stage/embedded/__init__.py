"""The embedded model and a small real corpus: a first run needs no GPU, no key and no server of one's own."""
