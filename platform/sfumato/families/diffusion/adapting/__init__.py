"""What adapters share: how a network is shown more than noise, time and texts."""
