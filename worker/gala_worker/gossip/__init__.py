"""Gossip between neighbours: what is sent, when it is mixed, and how the ring heals. See docs/protocol.md."""
