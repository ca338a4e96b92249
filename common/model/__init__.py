"""Models: finding their files, loading weights, running one decoder layer of any architecture."""
