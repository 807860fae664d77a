"""The bundled stores and embedders, one file each. They are found by entry point, so nothing is imported here."""
