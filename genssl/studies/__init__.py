"""What trains and evaluates."""
