"""The built-in tasks. Every module without a leading underscore is a plugin; this folder is loaded by file, never by name."""
