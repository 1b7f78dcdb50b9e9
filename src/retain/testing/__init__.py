"""Contract tests that every method must pass, built in or from a plugin.

`RETAIN_PLUGINS=my_method pytest --pyargs retain.testing` runs them over the methods that the module
`my_method` registers; without RETAIN_PLUGINS over the built-in ones.
"""
