"""Errors, settings, codec, clock: what every floor above uses. No input or output happens here."""
