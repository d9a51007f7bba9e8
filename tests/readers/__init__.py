"""Readers that did not write what they read: other versions of libraries, in environments of their own."""
