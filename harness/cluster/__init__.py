"""Many machines: which tests go to which node of a Ray cluster, what each node offers, and what came back."""
