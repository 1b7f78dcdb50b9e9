"""The tests that every method passes, for retain's own and for yours.

`RETAIN_PLUGINS=my_method pytest --pyargs retain.testing` runs them over the methods that the module
`my_method` registers; without RETAIN_PLUGINS over retain's own.
"""
