"""The world that postcards, the shipped model, was trained on: scenes, captions, pictures."""
