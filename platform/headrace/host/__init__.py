"""The host: one per node; claims sandboxes for control's commands and reports what lives here."""
