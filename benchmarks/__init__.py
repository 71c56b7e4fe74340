"""Side-by-side measurements of cygnet and of the libraries it is compared with: same weights, same inputs, one run."""
