"""What reads counts back."""
