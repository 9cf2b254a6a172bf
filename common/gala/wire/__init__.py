"""The wire format between neighbours: gossip.proto and its committed generated modules."""
