"""The extraction stage: frozen teachers read every image and text of a task once, into a token store."""
