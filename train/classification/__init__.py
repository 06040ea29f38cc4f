"""S_rel between classes during training (Section 2.1, Appendix D)."""
