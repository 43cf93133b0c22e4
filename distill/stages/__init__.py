"""The training stages as LightningModules."""
