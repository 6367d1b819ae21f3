"""The kernel side: BPF programs in C, and the one Python door to bcc."""
