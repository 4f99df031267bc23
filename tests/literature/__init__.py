"""Whether recipes come out in the order that the literature has them in, over the same documents, with intervals."""
