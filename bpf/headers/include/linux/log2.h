/* Included by bcc's prologue; nothing of it is used by our programs. */
