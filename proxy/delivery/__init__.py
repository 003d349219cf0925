"""Sends. Claims lanes from the store, sends their pushes to SendX, settles what became of them."""
