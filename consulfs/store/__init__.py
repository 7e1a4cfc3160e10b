"""KV content: records, the cache, unsaved edits, open files, and the talk with Consul about them."""
