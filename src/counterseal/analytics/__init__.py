"""Analytics: what happens in the application, counted by day."""
