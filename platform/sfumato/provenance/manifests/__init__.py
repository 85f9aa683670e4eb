"""C2PA manifests: signed statements in a picture's file of who made it and how (spec.c2pa.org, 2.x)."""
