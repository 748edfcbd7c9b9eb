"""The Valkey server that counterseal starts by itself, one for all processes of a data folder."""
