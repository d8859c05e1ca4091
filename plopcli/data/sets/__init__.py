"""One file per data set: where its images, masks and lists are, and what its ids mean."""
