"""The policies that others use, by their public descriptions and real defaults, to compare with."""
