"""Many servers behind one client: where they are, how they do, and which one gets the next request."""
