"""Nodes from anywhere: plugins that offer, launch, list and terminate machines which join the cluster."""
