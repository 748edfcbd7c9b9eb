"""Servers that speak Upstash's own protocols, so that its official clients work against them unmodified."""
