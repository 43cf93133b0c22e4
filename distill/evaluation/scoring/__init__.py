"""What measures masks against targets: IoU, AP and boundary IoU, and the intervals of their means."""
