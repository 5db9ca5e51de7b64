"""Parts of the math verifier; its entry is `rewards.math_equivalence.verify`.

extract finds the answer in a response, normalise takes typography away, expression and evaluate read and value
formulas. reading tells what kind of answer a text is, with answers (what one is), regions (intervals and inequalities),
families (parameters, moduli, conditions), units and wordings. compare decides whether two answers are the same, with
values for what is one number or formula, and symbolic asks math-verify about what is left, in a process that can be
killed.
"""
