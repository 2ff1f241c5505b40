"""Tables of tensor names of each format, for reading and for writing."""
