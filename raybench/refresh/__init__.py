"""Layer 5: a leaderboard kept up to date over many models and datasets."""
