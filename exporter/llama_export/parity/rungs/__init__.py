"""The rungs, one file each: what is measured, and on which of the evidence."""
