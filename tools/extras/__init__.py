"""What a trained model can be made to do beside drawing, on the quickstart's; see `command`."""
