"""The web app: choose a diff, ask, compare, take a report away. `service` works, `ui` shows (with gradio)."""
