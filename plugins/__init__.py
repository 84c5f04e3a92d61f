"""GPU compute plugins, one folder each, and what they share.

A plugin is found by the entry-point group `luciola.plugins`, whose value is a function `describe()` that says what it
can use on this machine; its commands by `luciola.commands`. The package of a plugin imports torch only when one of its
names is used, so that the command line stays quick. Plugins do not import one another. They share `weights`
(safetensors files), `kernels` (what their kernels share), `lazy` imports and `options` of commands.
"""
