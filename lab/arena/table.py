"""stub"""
def gate_lines(g): return str(g)
def row_of(*a): return {}
def write(*a): pass
