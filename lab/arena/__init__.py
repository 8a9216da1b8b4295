"""The arena: every published fix side by side, with the controls that papers omit."""
