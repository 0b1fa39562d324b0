"""What autoscaler.py decides by, and its switch."""
