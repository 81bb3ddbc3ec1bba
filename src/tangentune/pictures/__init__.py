"""Reading pictures: files, arrays and tables in, fixed-order uint8 tensors out. Workers import this without torch."""
