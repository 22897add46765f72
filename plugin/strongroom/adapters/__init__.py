"""Thin skins between strongroom and serving stacks; everything they need to know lives on lower floors."""
