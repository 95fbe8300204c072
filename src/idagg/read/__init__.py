"""What reads counts and the state of machines back."""
