"""Shipped to users: synthetic meetings with known content and stand-ins for other people's servers."""
