"""The fault matrix in the docs is the tests'."""

import faults_page


def test_the_docs_matrix_is_up_to_date():
    assert faults_page.PAGE.read_text(encoding="utf-8") == faults_page.page(), "python tests/support/faults_page.py"


def test_every_area_of_the_promise_has_its_rows():
    assert {row.area for row in faults_page.rows()} == set(faults_page.AREAS)
